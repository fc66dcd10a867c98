//! `report`: one page of HTML with everything in it, to be kept beside the results and sent to others. No script, nothing fetched. What is doubtful stands at its top.

use std::fmt::Write as _;

use exporter::landing::escape as escaped;
use serde_json::Value;

use crate::{
    cells::{Cell, cells},
    compare::{
        Apart, SEED,
        curves::{Curve, Price, curves},
        short,
    },
    cost::{Origin, Prices},
    figures::{Entry, Model},
    statistics::{bjontegaard::LEAST_POINTS, inference::Interval, mean},
};

mod plot;

use plot::Against;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}\
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}\
table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .55rem;border-bottom:1px solid #dfe4ea;text-align:right;vertical-align:top}td:not(.t):not(:first-child){white-space:nowrap}\
th:first-child,td:first-child,td.t,th.t{text-align:left}\
.banner{border-left:5px solid #d55e00;background:#fdf1e8;padding:.7rem 1rem;margin:1rem 0;font-weight:600}\
.note{color:#5a6675;font-size:.9rem}svg{max-width:100%;height:auto}\
.warning{color:#a34a00}.failed{color:#b00020}.wide{overflow-x:auto}";

/// Most pairs of curves that are held against each other.
const MOST_PAIRS: usize = 30;

/// The page. `file` is the result file of the newest run, for what the model does not know: checks, tools, failures.
#[must_use]
pub fn html(model: &Model, file: &Value, prices: &Prices) -> String {
    let all = cells(model);
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
    doubts(&mut page, file);
    page += "<h2>How to read this</h2><p class=\"note\">± is half of Student's 95 % interval over the repeats. Joules of the encoder are its dynamic energy as the probe gave it, without the \
             idle power of the machine; where no container was known they are the whole host's, and the table says so. Windows begin and end with a tick that the probe took for \
             them; scores were made afterwards. A point of the front is one that no other beats: better in rate, joules or quality, and worse in none, by more than the intervals; single repeats have none. \
             BD values are by PCHIP, with what the repeats allow by bootstrap, and Akima's beside them.</p></body></html>\n";
    page
}

fn banners(page: &mut String, model: &Model, file: &Value, prices: &Prices) {
    let mut banner = |text: &str| {
        let _ = write!(page, "<div class=\"banner\">{}</div>", escaped(text));
    };
    let sources = || model.entries.iter().flat_map(|entry| entry.figures.source.split('+'));
    if sources().any(|source| source == "model") {
        banner(
            "Energy is MODELLED from CPU time, not measured: no energy counter can be read on this host. Joules here tell how much CPU time was used, and nothing of how efficiently.",
        );
    }
    if model.entries.iter().all(|entry| entry.figures.energy.is_none()) {
        banner("No energy is known of this run: nothing here says what it used.");
    }
    if sources().any(|source| source == "fake") {
        banner("The GPU is FAKE: nothing of its joules was measured.");
    }
    if sources().any(|source| source == "replay") {
        banner("Energy was replayed from a recording; it is not of this run.");
    }
    if file.pointer("/run/status").and_then(Value::as_str).is_some_and(|status| status != "ok") {
        banner("Not everything came to a good end: what is missing is listed below.");
    }
    if [prices.energy_origin, prices.core_hour.origin].contains(&Origin::Default) {
        let _ = write!(
            page,
            "<p class=\"note\">Costs are at default prices, which are nobody's: --energy.price, --cpu.price.</p>"
        );
    }
}

/// A mean and its interval.
fn sure(values: &[f64]) -> String {
    match (Interval::of(values), mean(values)) {
        (Some(interval), _) if interval.half > 0.0 => format!("{} ± {}", short(interval.mean), short(interval.half)),
        (_, Some(mean)) => short(mean),
        (_, None) => "–".to_owned(),
    }
}

fn summary(page: &mut String, all: &[Cell<'_>]) {
    *page += "<h2>Configurations</h2><div class=\"wide\"><table><tr><th class=\"t\">configuration</th><th>n</th><th>joules</th><th class=\"t\">whose</th><th>mJ a frame</th>\
              <th>J for a second of media</th><th>fps</th><th>kbit/s</th><th>VMAF</th><th>cost of a stream hour</th></tr>";
    for cell in all {
        let entry = cell.first();
        let whose = cell.source().unwrap_or_else(|| {
            if entry.figures.scope.is_some() { "of several kinds".to_owned() } else { "–".to_owned() }
        });
        let energy = |of: &dyn Fn(&Entry) -> Option<f64>| sure(&cell.of_energy(of));
        let columns = [
            cell.entries.len().to_string(),
            energy(&|entry| entry.figures.joules()),
            escaped(&whose),
            energy(&|entry| Some(entry.figures.joules_per(entry.figures.frames)? * 1000.0)),
            energy(&|entry| Price::Energy.of(entry)),
            sure(&cell.values(&|entry| entry.scenario().avg_fps)),
            sure(&cell.values(&|entry| Some(Price::Rate.of(entry)? / 1000.0))),
            sure(&cell.scores(&|quality| quality.vmaf.as_ref())),
            energy(&|entry| Price::Cost.of(entry)),
        ];
        let _ = write!(page, "<tr><td>{}</td>", escaped(&entry.scenario().name));
        for (at, column) in columns.iter().enumerate() {
            let _ = write!(page, "<td{}>{column}</td>", if at == 2 { " class=\"t\"" } else { "" });
        }
        *page += "</tr>";
    }
    *page += "</table></div>";
}

fn plots(page: &mut String, model: &Model, all: &[Cell<'_>]) {
    let mut drawings = vec![("Energy by configuration, with 95 % intervals".to_owned(), plot::energy(all))];
    let mut of_model = curves(model);
    // One axis is of one measure, and one kind of joules.
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
            format!("{quality} and rate; ringed is the Pareto front"),
            plot::quality(&these, Against::Rate, &front),
        ));
        let whose = if source.is_empty() { String::new() } else { format!(" ({source})") };
        drawings.push((
            format!("{quality} and energy{whose}; ringed is the Pareto front"),
            plot::quality(&these, Against::Energy, &front),
        ));
    }
    drawings.push(("Power over time".to_owned(), plot::power(model, all)));
    for (title, drawn) in drawings {
        let title = escaped(&title);
        let _ = write!(page, "<h2>{title}</h2>");
        match drawn {
            Ok(svg) => *page += &svg,
            Err(why) => {
                let _ = write!(page, "<p class=\"note\">Nothing to draw: {}.</p>", escaped(&why));
            }
        }
    }
}

fn bjontegaard(page: &mut String, model: &Model) {
    let mut all = curves(model);
    let found = all.len();
    all.retain(|curve| curve.cells.len() >= LEAST_POINTS);
    let (mut rows, mut pairs) = (String::new(), 0);
    for (at, anchor) in all.iter().enumerate() {
        let like =
            |test: &&Curve<'_>| (&test.ladder, test.run, test.content) == (&anchor.ladder, anchor.run, anchor.content);
        for test in all[at + 1..].iter().filter(like) {
            pairs += 1;
            if pairs > MOST_PAIRS {
                continue;
            }
            for apart in Apart::of(anchor, test, SEED) {
                let _ = write!(
                    rows,
                    "<tr><td>{} → {}</td><td class=\"t\">{}</td><td class=\"t\">{}</td><td class=\"t\">{}</td></tr>",
                    escaped(&apart.a),
                    escaped(&apart.b),
                    escaped(&apart.ladder),
                    apart.measure,
                    escaped(&apart.text())
                );
            }
        }
    }
    *page += "<h2>Bjøntegaard: what the second pays more for the same quality</h2>";
    if found > all.len() {
        let _ = write!(
            page,
            "<p class=\"note\">{} of {found} curves have fewer than {LEAST_POINTS} configurations: too few for it.</p>",
            found - all.len()
        );
    }
    if pairs > MOST_PAIRS {
        let _ = write!(page, "<p class=\"note\">The first {MOST_PAIRS} of {pairs} pairs.</p>");
    }
    if rows.is_empty() {
        *page += "<p class=\"note\">It needs two curves of the same outputs, four configurations each.</p>";
    } else {
        let _ = write!(
            page,
            "<div class=\"wide\"><table><tr><th class=\"t\">curves</th><th class=\"t\">outputs</th><th class=\"t\">measure</th><th class=\"t\">difference</th></tr>{rows}</table></div>"
        );
    }
}

/// Checks, baselines, and what did not come to a good end.
fn doubts(page: &mut String, file: &Value) {
    let list = |path: &str| file.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| escaped(value.get(key).and_then(Value::as_str).unwrap_or_default());
    let mut rows = String::new();
    for cell in list("/cells") {
        for repeat in cell.get("repeats").and_then(Value::as_array).into_iter().flatten() {
            let status = text(repeat, "status");
            if status != "ok" {
                let n = repeat.get("n").and_then(Value::as_u64).map_or_else(String::new, |n| n.to_string());
                let _ = write!(
                    rows,
                    "<tr><td>{}</td><td>{n}</td><td class=\"t failed\">{status}</td><td class=\"t\">{}</td></tr>",
                    text(&cell, "name"),
                    text(repeat, "detail")
                );
            }
        }
    }
    if !rows.is_empty() {
        let _ = write!(
            page,
            "<h2>What did not come to a good end</h2><table><tr><th class=\"t\">configuration</th><th>repeat</th><th class=\"t\">status</th><th class=\"t\">why</th></tr>{rows}</table>"
        );
    }
    let checks = list("/preflight");
    if !checks.is_empty() {
        *page += "<h2>Looked at before</h2><table><tr><th class=\"t\">check</th><th class=\"t\">state</th><th class=\"t\"></th></tr>";
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
        *page += "<h2>The host without load</h2><table><tr><th class=\"t\">block</th><th>W</th><th>standard error</th><th>n</th><th class=\"t\"></th></tr>";
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
