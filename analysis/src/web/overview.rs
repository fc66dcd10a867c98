//! The first page: runs, quality, cost, health and streams at a glance, and the probes.

use std::path::Path;

use cli::number::per_stream_hours;
use http::index_page::escape;

use super::{
    budgets,
    frame::{Section, Tone, note},
    quality,
    results::{number, score, time_of, without_runs},
    tables::{self, states},
    view::{NOT_READ, ResultsView, RunSummary},
};
use crate::rendered_page::Table;

/// A probe of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeLink {
    /// Its name among the data sources.
    pub name: String,
    /// Its address for people, without credentials; `None` if it cannot be shown.
    pub url: Option<String>,
}

/// What the page summarizes.
pub struct Summary<'a> {
    pub view: Option<&'a ResultsView>,
    pub results_dir: &'a Path,
    pub probes: &'a [ProbeLink],
    /// Tables of the health page.
    pub health: &'a [Table],
    /// Tables of the stream pages.
    pub streams: &'a [Table],
}

/// The content of the page.
#[must_use]
pub fn body(summary: &Summary<'_>) -> String {
    let newest = summary.view.and_then(|view| view.runs.first());
    let mut out = String::from("<div class=\"tiles\">");
    out += &runs_tile(summary.view);
    out += &quality_tile(newest);
    out += &cost_tile(summary.view, newest);
    out += &health_tile(summary.health);
    out += &streams_tile(summary.streams);
    out += "</div>";
    match summary.view {
        Some(view) if view.runs.is_empty() => out += &without_runs(summary.results_dir, &view.problems),
        Some(view) => {
            out += &quality::newest_plots(view, 1).unwrap_or_default();
            out += &budgets::body(&view.budgets);
        }
        None => out += &note(NOT_READ),
    }
    out += &alerts(summary.health);
    out += &sources(summary);
    out
}

/// A figure that links to its page; `figure` and `text` are HTML.
fn tile(section: Section, figure: &str, text: &str) -> String {
    format!(
        "<div class=\"tile\"><span><a href=\"{}\">{}</a></span><b>{figure}</b><span>{text}</span></div>",
        section.path(),
        section.title()
    )
}

fn runs_tile(view: Option<&ResultsView>) -> String {
    let Some(view) = view else { return tile(Section::Results, "–", "not read yet") };
    let newest = view
        .runs
        .first()
        .map_or_else(|| "no runs yet".to_owned(), |run| format!("newest of {}", escape(&time_of(&run.run.id))));
    let problems = match view.problems.len() {
        0 => String::new(),
        count => format!(" {}", Tone::Warn.badge(&format!("{count} problems"))),
    };
    let count = view.runs.len();
    tile(Section::Results, &format!("{count} run{}", if count == 1 { "" } else { "s" }), &(newest + &problems))
}

fn quality_tile(newest: Option<&RunSummary>) -> String {
    let vmaf = score(newest.and_then(|run| run.vmaf));
    let joules = number(newest.and_then(|run| run.joules_per_frame), 1000.0);
    tile(
        Section::Quality,
        &format!("VMAF {vmaf}"),
        &format!("highest of the newest run; lowest energy {joules} mJ/frame"),
    )
}

fn cost_tile(view: Option<&ResultsView>, newest: Option<&RunSummary>) -> String {
    let currency = view.map_or_else(String::new, |view| escape(&view.prices.currency));
    let cost = newest.and_then(|run| run.cost_per_stream_hour);
    let (per_hours, hours) = cost.map_or((1.0, "stream hour"), |cost| per_stream_hours(cost.mean));
    let cost = number(cost, per_hours);
    let budgets = view.map_or(&[][..], |view| view.budgets.as_slice());
    let states: String = budgets
        .iter()
        .map(|budget| {
            let (tone, word) = budgets::state(budget);
            format!(" {}", tone.badge(&format!("{}: {word}", budget.name)))
        })
        .collect();
    tile(Section::Cost, &format!("{cost} {currency}"), &format!("per {hours}, lowest of the newest run{states}"))
}

fn health_tile(health: &[Table]) -> String {
    let all: Vec<(String, usize)> = health.iter().flat_map(states).collect();
    if all.is_empty() {
        return tile(Section::Health, "–", "the exporters have not been checked yet");
    }
    let total: usize = all.iter().map(|(_, count)| count).sum();
    let healthy: usize = all.iter().filter(|(state, _)| state == "healthy").map(|(_, count)| count).sum();
    let badges: Vec<String> =
        all.iter().map(|(state, count)| tables::tone(state).badge(&format!("{count} {state}"))).collect();
    tile(Section::Health, &format!("{healthy} of {total}"), &format!("exporters healthy {}", badges.join(" ")))
}

fn streams_tile(streams: &[Table]) -> String {
    let all = streams.iter().flat_map(states);
    let active: usize = all.filter(|(state, _)| state == "active").map(|(_, count)| count).sum();
    let rows: usize = streams.iter().map(|(.., rows)| rows.len()).sum();
    tile(Section::Streams, &format!("{active} active"), &format!("{rows} streams in the tables"))
}

/// The alerts that fire, which the health page has as a table.
fn alerts(health: &[Table]) -> String {
    let alerts = health.iter().filter(|(_, heads, _)| heads.first().is_some_and(|head| head == "alert"));
    alerts.map(tables::table).collect()
}

/// The probes and the other sources, each with its state and a link to its live page.
fn sources(summary: &Summary<'_>) -> String {
    let known = summary.view.map_or(&[][..], |view| view.sources.as_slice());
    let mut out = format!("<h2>Data sources</h2>{}", tables::open("Data sources"));
    out += "<thead><tr><th scope=\"col\">source</th><th scope=\"col\" class=\"text\">state</th>\
            <th scope=\"col\" class=\"text\">live page</th></tr></thead><tbody>";
    let row = |name: &str, reason: Option<&str>, link: String| {
        let state = match reason {
            None => Tone::Neutral.badge("not checked yet"),
            Some("") => Tone::Ok.badge("available"),
            Some(reason) => Tone::Bad.badge(reason),
        };
        format!("<tr><td>{}</td><td class=\"text\">{state}</td><td class=\"text\">{link}</td></tr>", escape(name))
    };
    let reason = |name: &str| known.iter().find(|(known, _)| known == name).map(|(_, reason)| &**reason);
    for probe in summary.probes {
        let link = probe.url.as_deref().map_or_else(|| "–".to_owned(), tables::link);
        out += &row(&probe.name, reason(&probe.name), link);
    }
    for (name, reason) in known.iter().filter(|(name, _)| summary.probes.iter().all(|probe| probe.name != *name)) {
        out += &row(name, Some(reason.as_str()), "–".to_owned());
    }
    out + tables::CLOSE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::view::tests::{file, row, view};

    fn table(title: &str, heads: &[&str], rows: &[&[&str]]) -> Table {
        let owned = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        (title.to_owned(), owned(heads), rows.iter().map(|row| owned(row)).collect())
    }

    fn page(view: Option<&ResultsView>, probes: &[ProbeLink]) -> String {
        let health = [table("Targets", &["target", "state"], &[&["a", "healthy"], &["<script>", "down"]])];
        let streams = [table("Streams", &["stream", "state"], &[&["cam", "active"], &["<script>", "ended"]])];
        body(&Summary { view, results_dir: Path::new("/srv/r"), probes, health: &health, streams: &streams })
    }

    #[test]
    fn every_part_is_summarized() {
        let text = file(&[row("<script>", 30.0, 80.0), row("b", 60.0, 90.0)]);
        let mut view = view(&[("20260101_000000", text.as_str())]);
        view.sources = vec![("probe <script>".into(), String::new()), ("database".into(), "absent".into())];
        let probe = ProbeLink { name: "probe <script>".into(), url: Some("http://enc-1:9500/".into()) };
        let page = page(Some(&view), &[probe]);
        for part in [
            "<b>1 run</b>",
            "<b>VMAF 90.00</b>",
            "<b>1 of 2</b>",
            "<b>1 active</b>",
            "<svg class=\"plot\"",
            "<a href=\"http://enc-1:9500/\" rel",
            "badge ok\">available",
            "badge bad\">absent",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        assert!(!page.contains("<script>") && !page.contains("style="), "{page}");
    }

    #[test]
    fn without_runs_the_page_says_what_to_do() {
        let empty = view(&[]);
        assert!(page(Some(&empty), &[]).contains("No runs yet in /srv/r"));
        let probe = ProbeLink { name: "probe".into(), url: None };
        assert!(page(None, &[probe]).contains("not checked yet"));
    }
}
