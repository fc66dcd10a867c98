//! Comparison of the metrics of two exporters, for a migration: common names and labels, and their
//! values.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use cli::{
    colour::Meaning,
    file::read_limited,
    terminal::{Cell, Column, Table, View},
};
use metrics::parse::{Exposition, Sample, parse};
use serde::Serialize;

use super::check::{self, MAX_PAGE, is_self_metric};
use client::{Access, Client};

/// An exporter to compare.
pub enum PageSource {
    /// Requested twice, for the rates of counters.
    Url(Box<Client>),
    /// The text of a saved page.
    File(String),
}

impl PageSource {
    /// A page by its URL or file, without a request yet.
    ///
    /// # Errors
    /// The URL is invalid, or the file unreadable.
    pub fn new(text: &str, access: &Access, timeout: Duration) -> Result<Self, String> {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            let page = read_limited(Path::new(text), MAX_PAGE);
            return page
                .map(Self::File)
                .map_err(|error| format!("{text}: {error}; give a URL or a file with a metrics page"));
        }
        let path = text.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
        let url = if path.is_empty() { format!("{}/metrics", text.trim_end_matches('/')) } else { text.to_owned() };
        let client = Client::new(&url, &access.without_exposed_secrets(&url), timeout, MAX_PAGE)
            .map_err(|error| error.to_string())?;
        Ok(Self::Url(Box::new(client)))
    }

    fn read(&self) -> Result<(Exposition, Instant), String> {
        let text = match self {
            Self::File(text) => text.clone(),
            Self::Url(client) => {
                let (response, _) = check::fetch(client).map_err(|error| error.to_string())?;
                if response.status != 200 {
                    return Err(format!("{}: status {}", client.display_url(), response.status));
                }
                String::from_utf8(response.body).map_err(|_| format!("{}: not UTF-8", client.display_url()))?
            }
        };
        Ok((parse(&text).map_err(|error| format!("not a metrics page: {error}"))?, Instant::now()))
    }
}

/// Properties of a family on one page.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FamilySummary {
    #[serde(rename = "type")]
    kind: String,
    series: usize,
    labels: BTreeSet<String>,
    /// Rate per second of counters, else the sum over series; absent if neither is meaningful.
    value: Option<f64>,
}

/// A family on both pages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FamilyComparison {
    family: String,
    old: Option<FamilySummary>,
    new: Option<FamilySummary>,
    /// Parts of the old family that the new one lacks, which breaks queries.
    lost: Vec<String>,
}

/// The comparison of two exporters, by family.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// True if the new exporter has all names and labels of the old one.
    pub complete: bool,
    seconds: f64,
    families: Vec<FamilyComparison>,
}

/// Reads both pages, twice over the given time.
///
/// # Errors
/// One of the pages cannot be read.
pub fn compare(old: &PageSource, new: &PageSource, over: Duration) -> Result<Comparison, String> {
    let sides = [("OLD", old), ("NEW", new)];
    let read = || -> Result<Vec<(Exposition, Instant)>, String> {
        sides.iter().map(|(name, side)| side.read().map_err(|why| format!("{name}: {why}"))).collect()
    };
    let first = read()?;
    std::thread::sleep(over);
    let second = read()?;
    let summaries: Vec<_> = first
        .iter()
        .zip(&second)
        .zip([old, new])
        .map(|(((before, start), (after, end)), side)| {
            // A file is of one moment and has no rates.
            let seconds = if matches!(side, PageSource::File(_)) { 0.0 } else { (*end - *start).as_secs_f64() };
            (summarize(before, after, seconds), after)
        })
        .collect();
    Ok(compare_pages(&summaries[0], &summaries[1], over.as_secs_f64()))
}

type Page<'a> = (BTreeMap<String, FamilySummary>, &'a Exposition);

fn compare_pages((old, old_page): &Page<'_>, (new, new_page): &Page<'_>, seconds: f64) -> Comparison {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let row = |name: &&String| {
        let (old, new) = (old.get(*name), new.get(*name));
        let lost = match (old, new) {
            // Metrics of the client library on the exporter itself differ by design.
            _ if is_self_metric(name) => Vec::new(),
            (None, _) => Vec::new(),
            (Some(_), None) => vec!["family".to_owned()],
            (Some(old), Some(new)) => {
                let labels = old.labels.difference(&new.labels).filter(|label| is_significant(name, label));
                let labels: Vec<String> = labels.map(|label| format!("label {label}")).collect();
                if labels.is_empty() { lost_series(name, old_page, new_page).into_iter().collect() } else { labels }
            }
        };
        FamilyComparison { family: (*name).clone(), old: old.cloned(), new: new.cloned(), lost }
    };
    let families: Vec<FamilyComparison> = names.iter().map(row).collect();
    Comparison { complete: families.iter().all(|row| row.lost.is_empty()), seconds, families }
}

/// False for labels that describe the exporter instead of what it measures: another program has
/// another version and language, so a difference loses nothing.
fn is_significant(family: &str, label: &str) -> bool {
    const INFO: [&str; 3] = ["_exporter_info", "_checker_info", "_build_info"];
    const PROGRAM: [&str; 7] = ["version", "language", "revision", "branch", "goversion", "rustc", "region"];
    !(INFO.iter().any(|suffix| family.ends_with(suffix)) && PROGRAM.contains(&label))
}

/// Describes the series of OLD whose labels no series of NEW has; queries by them would return
/// nothing.
fn lost_series(name: &str, old: &Exposition, new: &Exposition) -> Option<String> {
    let series =
        |page: &'_ Exposition| page.samples.iter().filter(|sample| sample.name == name).cloned().collect::<Vec<_>>();
    let (old, new) = (series(old), series(new));
    let exists = |sample: &Sample| {
        let wanted = sample.labels.iter().filter(|(label, _)| is_significant(name, label)).collect::<Vec<_>>();
        new.iter().any(|new| wanted.iter().all(|label| new.labels.contains(label)))
    };
    let mut lost = old.iter().filter(|sample| !exists(sample));
    let first = lost.next()?;
    let labels: Vec<String> = first.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    Some(format!("{} of {} series, such as {{{}}}", lost.count() + 1, old.len(), labels.join(",")))
}

/// Summarizes each family of a page that was read twice.
fn summarize(before: &Exposition, after: &Exposition, seconds: f64) -> BTreeMap<String, FamilySummary> {
    let mut all: BTreeMap<String, FamilySummary> = BTreeMap::new();
    let is_counter = |page: &Exposition, name: &str| {
        page.kind(name) == "counter" || page.kind(name) == "untyped" && name.ends_with("_total")
    };
    let first: BTreeMap<_, f64> =
        before.samples.iter().map(|sample| ((&sample.name, &sample.labels), sample.value)).collect();
    for sample in &after.samples {
        let kind = after.kind(&sample.name);
        // Buckets and quantiles do not add up; count and sum of a histogram are comparable.
        let is_part = sample.name.ends_with("_bucket") || sample.labels.iter().any(|(name, _)| name == "quantile");
        let summary = all.entry(sample.name.clone()).or_insert_with(|| FamilySummary {
            kind: kind.to_owned(),
            series: 0,
            labels: BTreeSet::new(),
            value: if is_part { None } else { Some(0.0) },
        });
        summary.series += 1;
        summary.labels.extend(sample.labels.iter().map(|(name, _)| name.clone()));
        let value = if is_counter(after, &sample.name) || kind == "histogram" || kind == "summary" {
            // No rate after a reset, for a new series, or from a file.
            let grown =
                first.get(&(&sample.name, &sample.labels)).map(|first| sample.value - first).filter(|by| *by >= 0.0);
            grown.filter(|_| seconds > 0.0).map(|grown| grown / seconds)
        } else {
            Some(sample.value)
        };
        summary.value = match (summary.value, value) {
            (Some(sum), Some(value)) => Some(sum + value),
            _ => None,
        };
    }
    all
}

impl Comparison {
    /// The text output: a table and a summary line.
    #[must_use]
    pub fn table(&self, view: View) -> String {
        let mut table = Table::new([
            Column::left("name"),
            Column::right("old series"),
            Column::right("new series"),
            Column::right("old value"),
            Column::right("new value"),
            Column::prose("note"),
        ]);
        for row in &self.families {
            let series = |summary: &Option<FamilySummary>| {
                summary.as_ref().map_or_else(|| "–".to_owned(), |summary| summary.series.to_string())
            };
            let value = |summary: &Option<FamilySummary>| {
                summary
                    .as_ref()
                    .and_then(|summary| summary.value)
                    .map_or_else(|| "–".to_owned(), |value| format!("{value:.6}"))
            };
            let figures = [series(&row.old), series(&row.new), value(&row.old), value(&row.new)].map(Cell::from);
            table.push([Cell::from(&*row.family)].into_iter().chain(figures).chain([row.note()]));
        }
        let mut out = table.text(view.with_whole_lines());
        let count = |has: fn(&FamilyComparison) -> bool| self.families.iter().filter(|row| has(row)).count();
        out += &view.fit(&format!(
            "{} common names, {} lost, {} new. Values: sums over series, for counters per second over {:.1} s\n",
            count(|row| row.old.is_some() && row.new.is_some()),
            count(|row| !row.lost.is_empty()),
            count(|row| row.old.is_none()),
            self.seconds
        ));
        out
    }
}

impl FamilyComparison {
    /// What differs.
    fn note(&self) -> Cell {
        let value = |summary: &Option<FamilySummary>| summary.as_ref().and_then(|summary| summary.value);
        match (&self.old, &self.new) {
            (None, _) => Cell::coloured("new", Meaning::Quiet),
            _ if !self.lost.is_empty() => Cell::coloured(&format!("LOST: {}", self.lost.join(", ")), Meaning::Worse),
            (Some(old), Some(new)) if old.kind != new.kind && new.kind != "untyped" && old.kind != "untyped" => {
                Cell::coloured(&format!("type {} instead of {}", new.kind, old.kind), Meaning::Warning)
            }
            (old, new) => {
                let both = value(old).zip(value(new));
                let both = both.filter(|(old, new)| *old != 0.0 && (new / old - 1.0).abs() > 0.0005);
                Cell::from(both.map_or_else(String::new, |(old, new)| format!("{:+.1} %", (new / old - 1.0) * 100.0)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Exposition {
        parse(text).unwrap()
    }

    #[test]
    fn lost_names_labels_and_series_are_reported() {
        let both = |before: &str, after: &str, seconds| {
            let after = page(after);
            (summarize(&page(before), &after, seconds), after)
        };
        let (old, old_page) = both(
            "# TYPE j_total counter\nj_total{zone=\"a\"} 1\nw{zone=\"a\"} 5\ngone 1\nv{z=\"0\"} 1\nv{z=\"1\"} 1\nprocess_x 1\n",
            "# TYPE j_total counter\nj_total{zone=\"a\"} 21\nw{zone=\"a\"} 6\ngone 1\nv{z=\"0\"} 1\nv{z=\"1\"} 1\nprocess_x 1\n",
            10.0,
        );
        let (new, new_page) = both(
            "# TYPE j_total counter\nj_total{zone=\"a\",source=\"m\"} 3\nw 5\nmore 1\nv{z=\"1\"} 1\n",
            "# TYPE j_total counter\nj_total{zone=\"a\",source=\"m\"} 23\nw 6\nmore 1\nv{z=\"1\"} 1\n",
            10.0,
        );
        let comparison = compare_pages(&(old, &old_page), &(new, &new_page), 10.0);
        let row = |name: &str| comparison.families.iter().find(|row| row.family == name).unwrap();
        let rate = |summary: &Option<FamilySummary>| summary.as_ref().and_then(|summary| summary.value);
        assert_eq!((rate(&row("j_total").old), rate(&row("j_total").new)), (Some(2.0), Some(2.0)));
        assert!(row("j_total").lost.is_empty() && row("more").lost.is_empty());
        assert_eq!((&*row("gone").lost, &*row("w").lost), (&["family".to_owned()][..], &["label zone".to_owned()][..]));
        assert_eq!(row("v").lost, ["1 of 2 series, such as {z=\"0\"}"]);
        assert!(row("process_x").lost.is_empty(), "a metric of the old program itself");
        assert!(!comparison.complete);
        let table = comparison.table(View::PLAIN);
        assert!(table.contains("3 lost, 1 new"), "{table}");
        assert!(table.lines().any(|line| line.starts_with("gone ") && line.ends_with("LOST: family")), "{table}");
        let (file, _) = both("# TYPE j_total counter\nj_total 7\n", "# TYPE j_total counter\nj_total 7\n", 0.0);
        assert_eq!(file["j_total"].value, None, "a file has no rates");
    }

    #[test]
    fn version_and_language_of_an_exporter_are_not_lost() {
        let both = |text: &str| {
            let page = page(text);
            (summarize(&page, &page, 0.0), page)
        };
        let (old, old_page) = both(
            "results_exporter_info{version=\"1.0.0\",language=\"go\"} 1\n\
             cost_exporter_info{version=\"1.0.0\",language=\"go\",region=\"us-east-1\"} 1\n\
             exporter_health_checker_info{version=\"1.0.0\",language=\"go\"} 1\n\
             scenario_info{version=\"1\"} 1\n",
        );
        let (new, new_page) = both(
            "results_exporter_info{version=\"0.9.0\",language=\"rust\"} 1\n\
             cost_exporter_info{version=\"0.9.0\",language=\"rust\",region=\"\"} 1\n\
             exporter_health_checker_info{version=\"0.9.0\"} 1\n\
             scenario_info{version=\"2\"} 1\n",
        );
        let comparison = compare_pages(&(old, &old_page), &(new, &new_page), 0.0);
        let lost = comparison.families.iter().filter(|row| !row.lost.is_empty());
        assert_eq!(lost.map(|row| &*row.family).collect::<Vec<_>>(), ["scenario_info"]);
    }
}
