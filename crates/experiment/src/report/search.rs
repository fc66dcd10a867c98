//! The result of a search for the least energy: the sentence that names it, the command line, a
//! plot of the candidates at the target, and why the others are out.

use std::fmt::Write as _;

use cli::number::{score_with_half_width, with_half_width};
use http::index_page::escape as escaped;
use results::estimate::Estimate;
use serde::Deserialize as _;
use serde_json::Value;

use super::svg::{Axis, Canvas, MAX_MAGNITUDE, WIDTH};
use crate::search::report::{CandidateReport, SearchReport, Status};

/// Most candidates that are shown; a search has a few dozen.
const MAX_ROWS: usize = 200;
/// Upper end of the rows, and the height of one.
const TOP: f64 = 6.0;
const ROW: f64 = 36.0;
/// Number of the plot in the page, which is none of the numbered ones.
const NUMBER: usize = 1000;

/// The section of a result file's block `search`; empty without one, or if it is invalid.
pub(super) fn section(file: &Value) -> String {
    let Some(Ok(report)) = file.get("search").map(SearchReport::deserialize) else { return String::new() };
    let mut page = format!("<h2>Search</h2><p><b>{}</b></p>", escaped(&report.summary));
    if !report.command.is_empty() {
        let _ = write!(page, "<pre>{}</pre>", escaped(&report.command));
    }
    match plot(&report) {
        Ok(svg) => {
            let _ = write!(page, "<div class=\"plots\"><figure>{svg}</figure></div>");
        }
        Err(why) => {
            let _ = write!(page, "<p class=\"note\">No plot: {why}.</p>");
        }
    }
    page += &table(&report);
    let _ = write!(
        page,
        "<p class=\"note\">{} encodes; every rate of every candidate three times would be {}. {}</p>",
        report.encodes,
        report.full_grid_encodes,
        escaped(&report.remarks())
    );
    page
}

/// The candidates with their figures at the target, and why they are out.
fn table(report: &SearchReport) -> String {
    let mut page = format!(
        "<div class=\"wide\" role=\"group\" aria-label=\"Table\" tabindex=\"0\"><table><tr><th class=\"t\">candidate</th><th>rate</th><th>n</th><th>{}</th><th>VMAF</th>\
         <th>PSNR (dB)</th><th>kbit/s</th><th>rates tried</th><th class=\"t\">result</th></tr>",
        escaped(&report.unit)
    );
    let text = |one: Option<Estimate>, text: fn(f64, Option<f64>) -> String| {
        escaped(&one.map_or_else(|| "–".to_owned(), |one| text(one.mean, one.half_width)))
    };
    for one in report.candidates.iter().take(MAX_ROWS) {
        let tried = one.at_target.as_ref();
        let value = tried.and_then(|tried| tried.value);
        let result = match one.status {
            Status::Winner => "winner",
            Status::Tied => "tie",
            Status::Dearer | Status::Constraint | Status::Failed => one.why.as_str(),
        };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} of {}</td><td class=\"t\">{}</td></tr>",
            escaped(&one.label),
            escaped(tried.map_or("–", |tried| tried.rate.as_str())),
            value.map_or(0, |value| value.n),
            text(value, with_half_width),
            text(tried.and_then(|tried| tried.vmaf), score_with_half_width),
            text(tried.and_then(|tried| tried.psnr), score_with_half_width),
            text(tried.and_then(|tried| tried.kbps), with_half_width),
            one.tried.len(),
            one.rates,
            escaped(result)
        );
    }
    page += "</table></div>";
    page
}

/// The candidates whose rate at the target is known, each with the mean and its interval.
fn plot(report: &SearchReport) -> Result<String, &'static str> {
    let known = |one: &CandidateReport| {
        let value = one.at_target.as_ref()?.value?;
        let half_width = value.half_width.unwrap_or_default();
        let is_drawn = |value: f64| (0.0..MAX_MAGNITUDE).contains(&value);
        (is_drawn(value.mean) && is_drawn(half_width)).then(|| (one.label.clone(), value.mean, half_width, one.status))
    };
    let rows: Vec<(String, f64, f64, Status)> = report.candidates.iter().take(MAX_ROWS).filter_map(known).collect();
    let largest = rows.iter().map(|(_, mean, half_width, _)| mean + half_width).fold(0.0, f64::max);
    if rows.is_empty() || largest <= 0.0 {
        return Err("no candidate has a value at the target that can be drawn");
    }
    Ok(draw(&rows, largest * 1.08, &report.unit))
}

/// One row for each candidate, the best at the top: its name, and below it the mean in its
/// interval.
fn draw(rows: &[(String, f64, f64, Status)], end: f64, unit: &str) -> String {
    let count = f64::from(u32::try_from(rows.len()).unwrap_or(u32::MAX));
    let bottom = TOP + ROW * count;
    let mut canvas = Canvas::new(bottom + 48.0);
    let x = Axis::linear(0.0..end, 12.0..WIDTH - 12.0);
    canvas.x_axis(&x, &(bottom..TOP), unit);
    let mut y = TOP;
    for (label, mean, half_width, status) in rows {
        let series = match status {
            Status::Winner | Status::Tied => 0,
            Status::Dearer => 1,
            Status::Constraint | Status::Failed => 2,
        };
        canvas.text("start", (x.at(0.0), y + 14.0), label);
        if *half_width > 0.0 {
            let (low, high) = ((mean - half_width).max(0.0), mean + half_width);
            canvas.interval(&Canvas::line_class(series), x.at(low), x.at(high), y + 26.0);
        }
        canvas.marker(series, (x.at(*mean), y + 26.0));
        y += ROW;
    }
    canvas.svg(NUMBER, "Candidates at the target", "One row for each candidate, with its mean and 95 % interval.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(value: f64) -> Value {
        let tried = json!({
            "rate": "2000k", "cell": "c", "value": { "mean": value, "half_width": value / 20.0, "n": 4 },
            "vmaf": { "mean": 93.4, "half_width": null, "n": 4 }, "psnr": null, "kbps": { "mean": 1990.0, "half_width": 0.0, "n": 4 },
        });
        let candidate = |label: &str, status: &str, why: &str| {
            json!({
                "label": label, "encoder": "libx264", "preset": label, "status": status, "why": why, "at_target": tried,
                "tried": [tried], "rates": 17,
            })
        };
        json!({ "search": {
            "objective": "energy", "unit": "J per second of media", "target": "VMAF 93", "outcome": "winner",
            "summary": "Least energy at VMAF 93: <fast>", "command": "ffmpeg -i INPUT", "encodes": 33, "full_grid_encodes": 510,
            "method": "m", "candidates": [candidate("<fast>", "winner", ""), candidate("slow", "dearer", "needs 20 % more")],
        } })
    }

    #[test]
    fn the_section_has_the_sentence_a_plot_and_the_reasons() {
        let page = section(&file(3.1));
        assert!(page.contains("Least energy at VMAF 93: &lt;fast&gt;") && !page.contains("<fast>"), "{page}");
        assert!(page.contains("<svg") && page.contains("needs 20 % more") && page.contains("33 encodes"), "{page}");
        assert!(page.contains("J per second of media</th>") && page.contains("<td>93.40</td>"), "{page}");
    }

    #[test]
    fn other_files_have_no_section() {
        for file in [json!({}), json!({ "search": null }), json!({ "search": { "objective": "x" } })] {
            assert_eq!(section(&file), "");
        }
        assert!(section(&file(1e300)).contains("No plot"), "no axis shows it");
    }
}
