//! The page of quality: VMAF by energy per frame of a run, and the scores of the newest one.

use std::fmt::Write as _;

use http::index_page::escape;

use super::{
    frame::{Tone, note},
    plot,
    results::time_of,
    tables,
    view::{QualityPlot, ResultsView, RunSummary},
};
use crate::rendered_page::Table;

/// Most plots of a run.
const MAX_PLOTS: usize = 6;

/// The content of the page: plots of the run with the id `run`, or of the newest one with plots,
/// and the tables of the newest run.
#[must_use]
pub fn body(view: Option<&ResultsView>, run: Option<&str>, details: &[Table]) -> String {
    let mut out = String::new();
    match (view, run) {
        (Some(view), Some(id)) => match view.run(id) {
            Some(run) => out += &plots_of(run, usize::MAX),
            None => out += &Tone::Warn.banner(&format!("No run {id}.")),
        },
        (Some(view), None) => {
            out += &newest_plots(view, MAX_PLOTS).unwrap_or_else(|| {
                note("No plot: no run has configurations with both VMAF and energy per frame. Score with --analyze-quality.")
            });
        }
        (None, _) => {}
    }
    if let Some(view) = view {
        out += &other_runs(view);
    }
    for table in details {
        out += &tables::table(table);
    }
    out
}

/// The first plots of the newest run that has any.
#[must_use]
pub fn newest_plots(view: &ResultsView, most: usize) -> Option<String> {
    view.runs.iter().find(|run| !run.plots.is_empty()).map(|run| plots_of(run, most))
}

fn plots_of(run: &RunSummary, most: usize) -> String {
    let mut out = format!("<h2>VMAF by energy per frame, run of {}</h2>", escape(&time_of(&run.run.id)));
    if run.plots.is_empty() {
        return out + &note("No plot: no configuration of this run has both VMAF and energy per frame.");
    }
    let most = most.min(MAX_PLOTS);
    for (number, plot) in run.plots.iter().take(most).enumerate() {
        out += &figure(&format!("plot-{number}"), plot);
    }
    if run.plots.len() > most {
        out += &note(&format!("The first {most} of {} groups of comparable configurations.", run.plots.len()));
    }
    out
}

/// A plot with its caption, and its figures as a table for those who cannot see it.
fn figure(id: &str, plot: &QualityPlot) -> String {
    let mut out = format!("<div class=\"card\"><h3>{}</h3>", escape(&plot.title));
    match plot::svg(id, plot) {
        Ok(svg) => out += &svg,
        Err(why) => out += &note(&format!("No plot: {why}.")),
    }
    out += "<p class=\"note\">Large points are on the Pareto front: no other configuration of the plot has a higher VMAF \
            or less energy, and neither is worse, by more than the 95 % intervals.</p>";
    let _ = write!(out, "<details><summary>Figures</summary>{}", tables::open(&plot.title));
    out += "<thead><tr><th scope=\"col\">configuration</th><th scope=\"col\">mJ/frame</th><th scope=\"col\">VMAF</th>\
            <th scope=\"col\" class=\"text\">Pareto front</th></tr></thead><tbody>";
    for point in &plot.points {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
            escape(&point.name),
            super::results::number(Some(point.joules), 1000.0),
            super::results::score(Some(point.vmaf)),
            if point.on_front { "yes" } else { "" }
        );
    }
    out + tables::CLOSE + "</details></div>"
}

/// Links to the plots of every run that has any.
fn other_runs(view: &ResultsView) -> String {
    let mut out = String::new();
    for run in view.runs.iter().filter(|run| !run.plots.is_empty()) {
        let id = escape(&run.run.id);
        let _ = write!(out, "<a href=\"/quality?run={id}\">{}</a> ", escape(&time_of(&run.run.id)));
    }
    if out.is_empty() { out } else { format!("<p class=\"note\">Plots of runs: {out}</p>") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::view::tests::{file, row, view};

    #[test]
    fn the_newest_run_with_plots_is_shown() {
        let scored = file(&[row("<script>", 30.0, 80.0), row("b", 60.0, 90.0)]);
        let view =
            view(&[("20260102_000000", "{\"scenarios\":[{\"name\":\"bare\"}]}"), ("20260101_000000", scored.as_str())]);
        let page = body(Some(&view), None, &[]);
        assert!(page.contains("run of 2026-01-01 00:00:00") && page.contains("<svg class=\"plot\""), "{page}");
        assert!(!page.contains("<script>") && !page.contains("style="), "{page}");
        assert!(page.contains("<td>100</td><td>80.00</td><td class=\"text\">yes</td>"), "{page}");
    }

    #[test]
    fn a_run_that_is_unknown_is_named_and_not_read() {
        let page = body(Some(&view(&[])), Some("../../etc/<b>"), &[]);
        assert!(page.contains("No run ../../etc/&lt;b&gt;"), "{page}");
        assert!(body(Some(&view(&[])), None, &[]).contains("--analyze-quality"));
    }
}
