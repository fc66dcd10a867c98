//! Two exporters beside each other, for whoever moves from one to the other: which families and labels both have, and whether they say the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use exporter::{
    file::read_whole,
    parse::{Exposition, Sample, parse},
};
use serde::Serialize;

use super::check::{self, MAX_PAGE, is_of_the_program};
use crate::client::{Access, Client};

/// One of the two: a URL, or a file that a page was kept in.
pub enum Side {
    /// Asked twice, so that counters tell a rate.
    Url(Box<Client>),
    /// Says what it says.
    File(String),
}

impl Side {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str, access: &Access, timeout: Duration) -> Result<Self, String> {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            let page = read_whole(Path::new(text), MAX_PAGE);
            return page.map(Self::File).map_err(|error| format!("{text}: {error}; give a URL, or a file with a page"));
        }
        let path = text.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
        let url = if path.is_empty() { format!("{}/metrics", text.trim_end_matches('/')) } else { text.to_owned() };
        let client = Client::new(&url, &access.discreet(&url), timeout, MAX_PAGE).map_err(|error| error.to_string())?;
        Ok(Self::Url(Box::new(client)))
    }

    fn read(&self) -> Result<(Exposition, Instant), String> {
        let text = match self {
            Self::File(text) => text.clone(),
            Self::Url(client) => {
                let (answer, _) = check::ask(client).map_err(|error| error.to_string())?;
                if answer.status != 200 {
                    return Err(format!("{}: status {}", client.shown(), answer.status));
                }
                String::from_utf8(answer.body).map_err(|_| format!("{}: not UTF-8", client.shown()))?
            }
        };
        Ok((parse(&text).map_err(|error| format!("no page of metrics: {error}"))?, Instant::now()))
    }
}

/// What one side says of a family.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Says {
    #[serde(rename = "type")]
    kind: String,
    series: usize,
    labels: BTreeSet<String>,
    /// Of counters the rate a second of all series, else their sum; absent where that means nothing.
    value: Option<f64>,
}

/// A family on both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    family: String,
    old: Option<Says>,
    new: Option<Says>,
    /// What of the old one is not in the new one: queries of it would break.
    lost: Vec<String>,
}

/// Families in order.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// True when nothing of the old one is lost.
    pub complete: bool,
    seconds: f64,
    families: Vec<Row>,
}

/// Reads both, waits, and reads both again.
///
/// # Errors
/// Why one of them cannot be read.
pub fn compare(old: &Side, new: &Side, over: Duration) -> Result<Comparison, String> {
    let sides = [("OLD", old), ("NEW", new)];
    let read = || -> Result<Vec<(Exposition, Instant)>, String> {
        sides.iter().map(|(name, side)| side.read().map_err(|why| format!("{name}: {why}"))).collect()
    };
    let first = read()?;
    std::thread::sleep(over);
    let second = read()?;
    let says: Vec<_> = first
        .iter()
        .zip(&second)
        .zip([old, new])
        .map(|(((before, start), (after, end)), side)| {
            // A file has one moment, and no rate.
            let seconds = if matches!(side, Side::File(_)) { 0.0 } else { (*end - *start).as_secs_f64() };
            (summed(before, after, seconds), after)
        })
        .collect();
    Ok(beside(&says[0], &says[1], over.as_secs_f64()))
}

type Page<'a> = (BTreeMap<String, Says>, &'a Exposition);

fn beside((old, of_old): &Page<'_>, (new, of_new): &Page<'_>, seconds: f64) -> Comparison {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let row = |name: &&String| {
        let (old, new) = (old.get(*name), new.get(*name));
        let lost = match (old, new) {
            // What a client library tells of its own program is another program's.
            _ if is_of_the_program(name) => Vec::new(),
            (None, _) => Vec::new(),
            (Some(_), None) => vec!["family".to_owned()],
            (Some(old), Some(new)) => {
                let labels: Vec<String> =
                    old.labels.difference(&new.labels).map(|label| format!("label {label}")).collect();
                if labels.is_empty() { series_lost(name, of_old, of_new).into_iter().collect() } else { labels }
            }
        };
        Row { family: (*name).clone(), old: old.cloned(), new: new.cloned(), lost }
    };
    let families: Vec<Row> = names.iter().map(row).collect();
    Comparison { complete: families.iter().all(|row| row.lost.is_empty()), seconds, families }
}

/// Series of OLD whose labels no series of NEW has, with whatever others: queries by those values would find nothing.
fn series_lost(name: &str, old: &Exposition, new: &Exposition) -> Option<String> {
    let of =
        |page: &'_ Exposition| page.samples.iter().filter(|sample| sample.name == name).cloned().collect::<Vec<_>>();
    let (all, there) = (of(old), of(new));
    let found = |sample: &Sample| there.iter().any(|new| sample.labels.iter().all(|label| new.labels.contains(label)));
    let mut lost = all.iter().filter(|sample| !found(sample));
    let first = lost.next()?;
    let labels: Vec<String> = first.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    Some(format!("{} of {} series, such as {{{}}}", lost.count() + 1, all.len(), labels.join(",")))
}

/// What a page says of each of its families, from two looks at it.
fn summed(before: &Exposition, after: &Exposition, seconds: f64) -> BTreeMap<String, Says> {
    let mut all: BTreeMap<String, Says> = BTreeMap::new();
    let counts = |page: &Exposition, name: &str| {
        page.kind(name) == "counter" || page.kind(name) == "untyped" && name.ends_with("_total")
    };
    let was: BTreeMap<_, f64> =
        before.samples.iter().map(|sample| ((&sample.name, &sample.labels), sample.value)).collect();
    for sample in &after.samples {
        let kind = after.kind(&sample.name);
        // Of a histogram or summary its number and sum tell whether two are alike; buckets and quantiles do not add up.
        let part = sample.name.ends_with("_bucket") || sample.labels.iter().any(|(name, _)| name == "quantile");
        let says = all.entry(sample.name.clone()).or_insert_with(|| Says {
            kind: kind.to_owned(),
            series: 0,
            labels: BTreeSet::new(),
            value: if part { None } else { Some(0.0) },
        });
        says.series += 1;
        says.labels.extend(sample.labels.iter().map(|(name, _)| name.clone()));
        let value = if counts(after, &sample.name) || kind == "histogram" || kind == "summary" {
            // A reset, or a series that has just come, tells no rate; nor does a file.
            let grown = was.get(&(&sample.name, &sample.labels)).map(|was| sample.value - was).filter(|by| *by >= 0.0);
            grown.filter(|_| seconds > 0.0).map(|grown| grown / seconds)
        } else {
            Some(sample.value)
        };
        says.value = match (says.value, value) {
            (Some(sum), Some(value)) => Some(sum + value),
            _ => None,
        };
    }
    all
}

impl Comparison {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.families.iter().map(|row| row.family.len()).max().unwrap_or(0).max(6);
        let mut out = format!("{:<width$}  {:>7} {:>7}  {:>14} {:>14}  \n", "series", "OLD", "NEW", "OLD", "NEW");
        for row in &self.families {
            let series =
                |says: &Option<Says>| says.as_ref().map_or_else(|| "–".to_owned(), |says| says.series.to_string());
            let value = |says: &Option<Says>| {
                says.as_ref().and_then(|says| says.value).map_or_else(|| "–".to_owned(), |value| format!("{value:.6}"))
            };
            let both = row.old.as_ref().and_then(|says| says.value).zip(row.new.as_ref().and_then(|says| says.value));
            let note = match (&row.old, &row.new) {
                (None, _) => "new".to_owned(),
                _ if !row.lost.is_empty() => format!("LOST: {}", row.lost.join(", ")),
                (Some(old), Some(new)) if old.kind != new.kind && new.kind != "untyped" && old.kind != "untyped" => {
                    format!("is a {}, was a {}", new.kind, old.kind)
                }
                _ => both
                    .filter(|(old, new)| *old != 0.0 && (new / old - 1.0).abs() > 0.0005)
                    .map_or_else(String::new, |(old, new)| format!("{:+.1} %", (new / old - 1.0) * 100.0)),
            };
            let line = format!(
                "{:<width$}  {:>7} {:>7}  {:>14} {:>14}  {note}",
                row.family,
                series(&row.old),
                series(&row.new),
                value(&row.old),
                value(&row.new)
            );
            out.push_str(line.trim_end());
            out.push('\n');
        }
        let of = |has: fn(&Row) -> bool| self.families.iter().filter(|row| has(row)).count();
        out.push_str(&format!(
            "{} names on both sides, {} lost, {} new. Values: sums over series; of counters a second, over {:.1} s\n",
            of(|row| row.old.is_some() && row.new.is_some()),
            of(|row| !row.lost.is_empty()),
            of(|row| row.old.is_none()),
            self.seconds
        ));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Exposition {
        parse(text).unwrap()
    }

    #[test]
    fn what_an_old_query_needs_is_told_when_it_is_lost() {
        let both = |before: &str, after: &str, seconds| {
            let after = page(after);
            (summed(&page(before), &after, seconds), after)
        };
        let (old, of_old) = both(
            "# TYPE j_total counter\nj_total{zone=\"a\"} 1\nw{zone=\"a\"} 5\ngone 1\nv{z=\"0\"} 1\nv{z=\"1\"} 1\nprocess_x 1\n",
            "# TYPE j_total counter\nj_total{zone=\"a\"} 21\nw{zone=\"a\"} 6\ngone 1\nv{z=\"0\"} 1\nv{z=\"1\"} 1\nprocess_x 1\n",
            10.0,
        );
        let (new, of_new) = both(
            "# TYPE j_total counter\nj_total{zone=\"a\",source=\"m\"} 3\nw 5\nmore 1\nv{z=\"1\"} 1\n",
            "# TYPE j_total counter\nj_total{zone=\"a\",source=\"m\"} 23\nw 6\nmore 1\nv{z=\"1\"} 1\n",
            10.0,
        );
        let comparison = beside(&(old, &of_old), &(new, &of_new), 10.0);
        let row = |name: &str| comparison.families.iter().find(|row| row.family == name).unwrap();
        let rate = |says: &Option<Says>| says.as_ref().and_then(|says| says.value);
        assert_eq!((rate(&row("j_total").old), rate(&row("j_total").new)), (Some(2.0), Some(2.0)));
        assert!(row("j_total").lost.is_empty() && row("more").lost.is_empty());
        assert_eq!((&*row("gone").lost, &*row("w").lost), (&["family".to_owned()][..], &["label zone".to_owned()][..]));
        assert_eq!(row("v").lost, ["1 of 2 series, such as {z=\"0\"}"]);
        assert!(row("process_x").lost.is_empty(), "another program's");
        assert!(!comparison.complete);
        assert!(comparison.table().contains("3 lost, 1 new"), "{}", comparison.table());
        let (file, _) = both("# TYPE j_total counter\nj_total 7\n", "# TYPE j_total counter\nj_total 7\n", 0.0);
        assert_eq!(file["j_total"].value, None, "a file tells no rate");
    }
}
