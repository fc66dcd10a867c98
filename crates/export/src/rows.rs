//! The samples of rendered pages, read from the text that `/metrics` serves.

use metrics::{
    family::{Def, Kind},
    page::Page,
    parse::{self, Sample},
};

/// A family of a page with its samples. Those of a histogram are its buckets, sums and counts.
#[derive(Clone, Debug)]
pub(crate) struct FamilySamples {
    pub(crate) def: &'static Def,
    pub(crate) samples: Vec<Sample>,
}

/// Labels with their values, in the order of the definition.
pub(crate) type Labels = Vec<(String, String)>;

/// Reads the samples of several pages. A series on more than one of them, such as those of the
/// process itself, is taken from the first.
///
/// # Errors
/// A page that cannot be parsed, which would be a fault of its encoder.
pub(crate) fn read<'a>(pages: impl IntoIterator<Item = &'a Page>) -> Result<Vec<FamilySamples>, String> {
    let mut all: Vec<FamilySamples> = Vec::new();
    for page in pages {
        for (def, text) in page.families() {
            let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", def.name);
            let text = std::str::from_utf8(text).map_err(|error| fault(&error))?;
            let samples = parse::parse_as(text, false).map_err(|error| fault(&error))?.samples;
            match all.iter_mut().find(|family| family.def.name == def.name) {
                None => all.push(FamilySamples { def, samples }),
                Some(family) => {
                    let known = family.samples.len();
                    let is_new = |sample: &Sample| {
                        let same = |old: &Sample| old.name == sample.name && old.labels == sample.labels;
                        !family.samples[..known].iter().any(same)
                    };
                    let new: Vec<Sample> = samples.into_iter().filter(is_new).collect();
                    family.samples.extend(new);
                }
            }
        }
    }
    Ok(all)
}

/// The content of a histogram row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Distribution {
    /// Finite upper bounds, ascending.
    pub(crate) bounds: Vec<f64>,
    /// Number of observations up to each bound.
    pub(crate) cumulative: Vec<u64>,
    pub(crate) count: u64,
    pub(crate) sum: f64,
}

/// A number, or the content of a histogram row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Number(f64),
    Distribution(Distribution),
}

impl FamilySamples {
    /// The rows as they were pushed to the family: one for each set of label values.
    pub(crate) fn rows(&self) -> Vec<(Labels, Value)> {
        if self.def.kind != Kind::Histogram {
            let row = |sample: &Sample| (sample.labels.clone(), Value::Number(sample.value));
            return self.samples.iter().map(row).collect();
        }
        let mut rows: Vec<(Labels, Distribution)> = Vec::new();
        for sample in &self.samples {
            add_to_histogram(self.def.name, sample, &mut rows);
        }
        rows.into_iter().map(|(labels, row)| (labels, Value::Distribution(row))).collect()
    }

    /// The value of the only row of a family without labels.
    pub(crate) fn single(families: &[Self], name: &str) -> Option<f64> {
        families.iter().find(|family| family.def.name == name)?.samples.first().map(|sample| sample.value)
    }
}

/// Adds a line of a histogram to its row. The encoder writes the lines of a row one after another.
fn add_to_histogram(name: &str, sample: &Sample, rows: &mut Vec<(Labels, Distribution)>) {
    let mut labels = sample.labels.clone();
    let bound = labels.iter().position(|(label, _)| label == "le").map(|at| labels.remove(at).1);
    if rows.last().is_none_or(|(known, _)| *known != labels) {
        rows.push((labels, Distribution::default()));
    }
    let Some((_, row)) = rows.last_mut() else { return };
    match (sample.name.strip_prefix(name), bound.and_then(|bound| bound.parse::<f64>().ok())) {
        (Some("_bucket"), Some(bound)) if bound.is_finite() => {
            row.bounds.push(bound);
            row.cumulative.push(count(sample.value));
        }
        (Some("_sum"), _) => row.sum = sample.value,
        (Some("_count"), _) => row.count = count(sample.value),
        _ => {}
    }
}

/// A number of observations, which the text format writes like any number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count; the cast saturates")]
fn count(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use metrics::{
        family::{Buckets, Family},
        page::render,
    };

    use super::*;

    static POWER: Def = Def::gauge("power_watts", &["zone"], "Power.");
    static WAIT: Def = Def::histogram("wait_seconds", &["container"], "Wait.");

    fn buckets(counts: [u64; 3]) -> Buckets {
        Buckets { cumulative: vec![(0.5, counts[0]), (2.0, counts[1])], count: counts[2], sum: 3.5 }
    }

    #[test]
    fn rows_are_those_that_were_rendered() {
        let mut wait = Family::new(&WAIT);
        wait.push_buckets(&["a"], &buckets([1, 2, 4]));
        wait.push_buckets(&["b"], &buckets([0, 0, 0]));
        let power = Family::new(&POWER).with(&["core \"1\""], 0.1 + 0.2);
        let page = render("t", [power, wait]).unwrap();
        let families = read([&page]).unwrap();
        let zone = vec![("zone".to_owned(), "core \"1\"".to_owned())];
        assert_eq!(families[0].rows(), [(zone, Value::Number(0.1 + 0.2))]);
        let rows = families[1].rows();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].0, [("container".to_owned(), "a".to_owned())]);
        let expected = Distribution { bounds: vec![0.5, 2.0], cumulative: vec![1, 2], count: 4, sum: 3.5 };
        assert_eq!(rows[0].1, Value::Distribution(expected));
    }

    #[test]
    fn a_series_on_two_pages_is_read_once() {
        let page = |zones: &[(&str, f64)]| {
            let mut family = Family::new(&POWER);
            zones.iter().for_each(|(zone, watts)| family.push(&[*zone], *watts));
            render("t", [family]).unwrap()
        };
        let families = read([&page(&[("a", 1.0)]), &page(&[("a", 2.0), ("b", 3.0)])]).unwrap();
        assert_eq!(families.len(), 1);
        let values: Vec<f64> = families[0].samples.iter().map(|sample| sample.value).collect();
        assert_eq!(values, [1.0, 3.0]);
    }
}
