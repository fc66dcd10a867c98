//! The page of results: the runs as a table that the query sorts, with links to what belongs to
//! each, and a form that compares two of them.

use std::{cmp::Ordering, fmt::Write as _, path::Path};

use cli::number::{per_stream_hours, score_with_half_width, with_half_width};
use http::index_page::escape;
use results::estimate::Estimate;

use super::{
    frame::{Tone, command, note},
    tables,
    view::{NOT_READ, ResultsView, RunSummary},
};
use crate::{index_tables::PROBLEMS, rendered_page::Table};

/// A column by which runs are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Column {
    #[default]
    Run,
    Host,
    Configurations,
    Measurements,
    Energy,
    Vmaf,
    Cost,
}

impl Column {
    const ALL: [Self; 7] =
        [Self::Run, Self::Host, Self::Configurations, Self::Measurements, Self::Energy, Self::Vmaf, Self::Cost];

    /// The value of `sort` in the query.
    fn key(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Host => "host",
            Self::Configurations => "configurations",
            Self::Measurements => "measurements",
            Self::Energy => "energy",
            Self::Vmaf => "vmaf",
            Self::Cost => "cost",
        }
    }

    fn head(self, currency: &str, hours: &str) -> String {
        match self {
            Self::Run => "run".to_owned(),
            Self::Host => "host".to_owned(),
            Self::Configurations => "configurations".to_owned(),
            Self::Measurements => "measurements".to_owned(),
            Self::Energy => "lowest mJ/frame".to_owned(),
            Self::Vmaf => "highest VMAF".to_owned(),
            Self::Cost => format!("lowest {currency} per {hours}"),
        }
    }

    /// The order of the first click: the newest, the most, the best at the top.
    fn is_descending_first(self) -> bool {
        !matches!(self, Self::Host | Self::Energy | Self::Cost)
    }
}

/// The order of the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    pub column: Column,
    pub descending: bool,
}

impl Default for Sort {
    fn default() -> Self {
        Self { column: Column::Run, descending: true }
    }
}

impl Sort {
    /// The order of `?sort=KEY`, or descending of `?sort=-KEY`; the newest first for an unknown
    /// key.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (key, descending) = match text.strip_prefix('-') {
            Some(key) => (key, true),
            None => (text, false),
        };
        let column = Column::ALL.into_iter().find(|column| column.key() == key);
        column.map_or_else(Self::default, |column| Self { column, descending })
    }

    /// The runs in this order. Runs without the value are last in both directions.
    fn order<'a>(&self, runs: &'a [RunSummary]) -> Vec<&'a RunSummary> {
        let mut sorted: Vec<&RunSummary> = runs.iter().collect();
        let directed = |order: Ordering| if self.descending { order.reverse() } else { order };
        sorted.sort_by(|a, b| match self.column {
            Column::Run => directed(a.run.id.cmp(&b.run.id)),
            Column::Host => of_options(a.run.host.as_ref(), b.run.host.as_ref(), |a, b| directed(a.cmp(b))),
            Column::Configurations => directed(a.configurations.cmp(&b.configurations)),
            Column::Measurements => directed(a.measurements.cmp(&b.measurements)),
            Column::Energy | Column::Vmaf | Column::Cost => {
                let value = |run: &RunSummary| self.value(run).map(|estimate| estimate.mean);
                of_options(value(a), value(b), |a, b| directed(a.total_cmp(&b)))
            }
        });
        sorted
    }

    fn value(&self, run: &RunSummary) -> Option<Estimate> {
        match self.column {
            Column::Energy => run.joules_per_frame,
            Column::Vmaf => run.vmaf,
            Column::Cost => run.cost_per_stream_hour,
            Column::Run | Column::Host | Column::Configurations | Column::Measurements => None,
        }
    }
}

/// Compares two values; an absent one is last.
fn of_options<T>(a: Option<T>, b: Option<T>, compare: impl FnOnce(T, T) -> Ordering) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => compare(a, b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

/// The time of a run id, `2026-01-31 12:00:00` for `20260131_120000`.
#[must_use]
pub fn time_of(id: &str) -> String {
    let part = |range: std::ops::Range<usize>| id.get(range);
    match (id.len(), part(0..4), part(4..6), part(6..8), part(9..11), part(11..13), part(13..15)) {
        (15, Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) => {
            format!("{year}-{month}-{day} {hour}:{minute}:{second}")
        }
        _ => id.to_owned(),
    }
}

/// What to do without a run.
#[must_use]
pub fn without_runs(dir: &Path, problems: &[String]) -> String {
    let mut out = note(&format!("No runs yet in {}. Measure encoder configurations:", dir.display()));
    out += &command("wattcast-analysis run suite --encoder libx264,libx265 --bitrate 1M,2M,4M,8M --analyze-quality");
    out += &problem_list(problems);
    out
}

/// Files and rows that could not be read.
fn problem_list(problems: &[String]) -> String {
    problems.iter().map(|problem| Tone::Warn.banner(problem)).collect()
}

/// The content of the page. `details` are the tables of the newest run.
#[must_use]
pub fn body(view: Option<&ResultsView>, sort: Sort, dir: &Path, details: &[Table]) -> String {
    let Some(view) = view else { return note(NOT_READ) };
    if view.runs.is_empty() {
        return without_runs(dir, &view.problems);
    }
    let mut out = runs_table(view, sort);
    // The problems are shown as banners, not as one more table.
    for table in details.iter().filter(|(title, ..)| title != PROBLEMS) {
        out += &tables::table(table);
    }
    out + &problem_list(&view.problems)
}

fn runs_table(view: &ResultsView, sort: Sort) -> String {
    let mut out = String::from("<h2>Runs</h2><form method=\"get\" action=\"/compare\">");
    out += &tables::open("Runs");
    out.push_str("<thead><tr>");
    let costs = view.runs.iter().filter_map(|run| Some(run.cost_per_stream_hour?.mean));
    let (per_hours, hours) = per_stream_hours(costs.fold(0.0, f64::max));
    for column in Column::ALL {
        let is_current = column == sort.column;
        let descending = if is_current { !sort.descending } else { column.is_descending_first() };
        let state = match (is_current, sort.descending) {
            (false, _) => "",
            (true, true) => " aria-sort=\"descending\"",
            (true, false) => " aria-sort=\"ascending\"",
        };
        let class = if column == Column::Host { " class=\"text\"" } else { "" };
        let _ = write!(
            out,
            "<th scope=\"col\"{class}{state}><a href=\"/results?sort={}{}\">{}</a></th>",
            if descending { "-" } else { "" },
            column.key(),
            escape(&column.head(&view.prices.currency, hours))
        );
    }
    out += "<th scope=\"col\" class=\"text\">energy of</th><th scope=\"col\" class=\"text\">open</th>\
            <th scope=\"col\">baseline</th><th scope=\"col\">candidate</th></tr></thead><tbody>";
    // The newest run is compared with the one before unless others are chosen.
    let newest = |at: usize| view.runs.get(at).map(|run| &*run.run.id);
    for run in sort.order(&view.runs) {
        out += &run_row(run, [newest(1), newest(0)], per_hours);
    }
    out += tables::CLOSE;
    if view.runs.len() > 1 {
        out += "<p><button class=\"button\">Compare baseline and candidate</button></p>";
    } else {
        out += &note("A second run can be compared with this one.");
    }
    out + "</form>"
}

/// `per_hours` is the number of hours of the cost.
fn run_row(run: &RunSummary, [baseline, candidate]: [Option<&str>; 2], per_hours: f64) -> String {
    let id = escape(&run.run.id);
    let sources = if run.energy_sources.is_empty() { "–".to_owned() } else { run.energy_sources.join("; ") };
    let choice = |name: &str, chosen: Option<&str>| {
        let checked = if chosen == Some(&*run.run.id) { " checked" } else { "" };
        format!(
            "<td><input type=\"radio\" name=\"{name}\" value=\"{id}\" aria-label=\"{name}: run {id}\"{checked}></td>"
        )
    };
    format!(
        "<tr><td>{}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td class=\"text\">{}</td><td class=\"text\"><a href=\"/results/{id}/report\">report</a> \
         <a href=\"/quality?run={id}\">plot</a> <a href=\"/results/{id}/file\">file</a></td>{}{}</tr>",
        escape(&time_of(&run.run.id)),
        escape(run.run.host.as_deref().unwrap_or("–")),
        run.configurations,
        run.measurements,
        number(run.joules_per_frame, 1000.0),
        score(run.vmaf),
        number(run.cost_per_stream_hour, per_hours),
        escape(&sources),
        choice("baseline", baseline),
        choice("candidate", candidate),
    )
}

/// A mean quality score with its interval, as HTML.
#[must_use]
pub fn score(estimate: Option<Estimate>) -> String {
    let text = estimate.map(|estimate| score_with_half_width(estimate.mean, estimate.half_width));
    escape(text.as_deref().unwrap_or("–"))
}

/// A mean with its interval, as HTML; `scale` is its unit in that of the column.
#[must_use]
pub fn number(estimate: Option<Estimate>, scale: f64) -> String {
    let text =
        |estimate: Estimate| with_half_width(estimate.mean * scale, estimate.half_width.map(|half| half * scale));
    escape(&estimate.map_or_else(|| "–".to_owned(), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::view::tests::{file, row, view};

    fn two_runs() -> ResultsView {
        let old = file(&[row("a", 30.0, 80.0)]).replacen('{', "{\"host\":\"<script>alert(1)</script>\",", 1);
        let new = file(&[row("a", 15.0, 0.0).replace("\"vmaf_score\":0.0", "\"x\":0"), row("b", 60.0, 70.0)]);
        view(&[("20260102_000000", new.as_str()), ("20260101_000000", old.as_str())])
    }

    fn ids(view: &ResultsView, sort: &str) -> Vec<String> {
        Sort::parse(sort).order(&view.runs).iter().map(|run| run.run.id[..8].to_owned()).collect()
    }

    #[test]
    fn runs_are_sorted_by_the_query() {
        let view = two_runs();
        for (sort, first) in [
            ("", "20260102"),
            ("nonsense", "20260102"),
            ("run", "20260101"),
            ("-run", "20260102"),
            ("energy", "20260102"),
            ("-energy", "20260101"),
            ("vmaf", "20260102"),
            ("-vmaf", "20260101"),
            ("-configurations", "20260102"),
            ("host", "20260101"),
            ("-host", "20260101"),
        ] {
            assert_eq!(ids(&view, sort)[0], first, "{sort}");
        }
    }

    #[test]
    fn names_of_files_and_hosts_are_escaped() {
        let view = two_runs();
        let page = body(Some(&view), Sort::parse("\"><script>"), Path::new("r"), &[]);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;alert(1)"), "{page}");
    }

    /// The cost of an hour was "< 0.0001" for every run of a small machine.
    #[test]
    fn small_costs_have_digits() {
        let text = file(&[row("a", 1.0, 80.0)]);
        let page = body(Some(&view(&[("20260101_000000", text.as_str())])), Sort::default(), Path::new("r"), &[]);
        assert!(page.contains("per 1000 stream hours</a>") && page.contains("<td>0.012</td>"), "{page}");
    }

    #[test]
    fn each_run_links_to_report_file_and_comparison() {
        let page = body(Some(&two_runs()), Sort::default(), Path::new("r"), &[]);
        for part in [
            "<td>2026-01-02 00:00:00</td>",
            "href=\"/results/20260101_000000/report\"",
            "href=\"/results/20260101_000000/file\"",
            "name=\"baseline\" value=\"20260101_000000\" aria-label=\"baseline: run 20260101_000000\" checked",
            "name=\"candidate\" value=\"20260102_000000\" aria-label=\"candidate: run 20260102_000000\" checked",
            "aria-sort=\"descending\"><a href=\"/results?sort=run\">",
            "<a href=\"/results?sort=energy\">",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        assert_eq!(page.matches("aria-sort").count(), 1);
    }

    #[test]
    fn an_empty_directory_says_what_to_do() {
        let page = body(Some(&view(&[])), Sort::default(), Path::new("/srv/<r>"), &[]);
        assert!(
            page.contains("No runs yet in /srv/&lt;r&gt;") && page.contains("wattcast-analysis run suite"),
            "{page}"
        );
        assert!(body(None, Sort::default(), Path::new("r"), &[]).contains("not been read yet"));
    }
}
