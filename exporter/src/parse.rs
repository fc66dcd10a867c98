//! Pages of metrics as other programs write them, read strictly: the text format 0.0.4 and OpenMetrics 1.0. Pure.
//!
//! What a scraper would refuse is refused here too, with the line: what is no sample, a label twice, a type twice or none that is known, an OpenMetrics page without its
//! end. An HTML page of a proxy is no page of metrics. What is bounded is the caller's: hand over no more bytes than are wanted.

use std::collections::BTreeMap;

/// Most samples of a page. A cAdvisor of a large host has some ten thousand.
pub const MAX_SAMPLES: usize = 1_000_000;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its full name.
    pub name: String,
    /// Names and values, unescaped, in their order.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
    /// The moment that the page gives it, unix seconds; mostly none.
    pub at: Option<f64>,
}

impl Sample {
    /// A label's value; empty when the sample has no such label.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// What a page says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    /// Names in `# TYPE` lines with their types, as written.
    pub types: BTreeMap<String, String>,
    /// In the order of the page.
    pub samples: Vec<Sample>,
}

impl Exposition {
    /// The family that a sample's name belongs to: the name itself, or that of a histogram, a summary or an OpenMetrics counter.
    #[must_use]
    pub fn family<'a>(&self, name: &'a str) -> &'a str {
        if self.types.contains_key(name) {
            return name;
        }
        let suffixes = ["_bucket", "_count", "_sum", "_total", "_created", "_info"];
        suffixes
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|base| self.types.contains_key(*base))
            .unwrap_or(name)
    }

    /// The type of the family that a sample belongs to; `untyped` where nothing says.
    #[must_use]
    pub fn kind(&self, name: &str) -> &str {
        self.types.get(self.family(name)).map_or("untyped", |kind| kind)
    }
}

/// Why a page is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct NotAPage {
    /// From 1.
    pub line: usize,
    /// In a few words, with what stands there.
    pub what: String,
}

/// Types of either format.
const TYPES: [&str; 9] =
    ["counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "stateset", "gaugehistogram"];

/// Reads a page. Timestamps are milliseconds in text, and seconds in OpenMetrics, which is what ends in `# EOF`.
///
/// # Errors
/// The first line that is none of either format, or too many samples.
pub fn parse(page: &str) -> Result<Exposition, NotAPage> {
    parse_as(page, page.trim_end().ends_with("# EOF"))
}

/// The same of what was said to be OpenMetrics, or text: `Content-Type` tells.
///
/// # Errors
/// As of [`parse`].
pub fn parse_as(page: &str, openmetrics: bool) -> Result<Exposition, NotAPage> {
    if openmetrics && !page.trim_end().ends_with("# EOF") {
        return Err(NotAPage {
            line: page.lines().count().max(1),
            what: "OpenMetrics without # EOF: it is not whole".to_owned(),
        });
    }
    let mut all = Exposition::default();
    for (number, line) in page.lines().enumerate() {
        let wrong = |what: &str| {
            let shown: String = line.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
            NotAPage { line: number + 1, what: format!("{what}: {shown}") }
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_whitespace();
            if words.next() == Some("TYPE") {
                let (Some(name), Some(kind)) = (words.next(), words.next()) else {
                    return Err(wrong("TYPE without a name or a type"));
                };
                if !TYPES.contains(&kind) {
                    return Err(wrong("a TYPE that nobody knows"));
                }
                if all.types.insert(name.trim_matches('"').to_owned(), kind.to_owned()).is_some() {
                    return Err(wrong("a second TYPE of the same name"));
                }
            }
            continue;
        }
        if all.samples.len() >= MAX_SAMPLES {
            return Err(wrong("more samples than anybody wants"));
        }
        all.samples.push(sample(line, openmetrics).map_err(wrong)?);
    }
    Ok(all)
}

fn sample(line: &str, openmetrics: bool) -> Result<Sample, &'static str> {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(line.len());
    let (name, mut rest) = line.split_at(name_end);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a name begins with a digit");
    }
    let mut name = name.to_owned();
    let mut labels = Vec::new();
    rest = rest.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside.trim_start();
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            // Prometheus 3 writes names that are not of the old alphabet as {"name",label="value"}.
            let (key, after) = if rest.starts_with('"') {
                quoted(rest)?
            } else {
                let end = rest.find(['=', ',', '}', ' ']).ok_or("a label without a value")?;
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
                if !rest[..end].chars().all(plain) || rest.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err("a label with a name that is none");
                }
                (rest[..end].to_owned(), &rest[end..])
            };
            rest = after.trim_start();
            if let Some(value) = rest.strip_prefix('=') {
                let (value, after) = quoted(value.trim_start())?;
                if key.is_empty() {
                    return Err("a label without a name");
                }
                if labels.iter().any(|(known, _)| *known == key) {
                    return Err("a label twice");
                }
                labels.push((key, value));
                rest = after.trim_start();
            } else if name.is_empty() {
                name = key;
            } else {
                return Err("a label without a value");
            }
            match rest.strip_prefix(',') {
                Some(after) => rest = after.trim_start(),
                None if rest.starts_with('}') => {}
                None => return Err("labels that do not end"),
            }
        }
    }
    if name.is_empty() {
        return Err("no sample of metrics");
    }
    // An exemplar is not ours to judge.
    let rest = rest.split(" # ").next().unwrap_or_default();
    let mut words = rest.split_whitespace();
    let value = words.next().and_then(|word| word.parse().ok()).ok_or("no value")?;
    let at = match words.next() {
        None => None,
        Some(word) => {
            let at: f64 = word.parse().map_err(|_| "a time that is no number")?;
            if !openmetrics && word.parse::<i64>().is_err() {
                return Err("a time with a fraction: text has whole milliseconds");
            }
            Some(if openmetrics { at } else { at / 1000.0 })
        }
    };
    if words.next().is_some() {
        return Err("more than a value and a time");
    }
    Ok(Sample { name, labels, value, at })
}

/// A quoted text with its escapes undone, and what follows.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let inside = text.strip_prefix('"').ok_or("a value without quotes")?;
    let mut out = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &inside[at + 1..])),
            '\\' => match chars.next().ok_or("quotes that do not end")?.1 {
                'n' => out.push('\n'),
                other => out.push(other),
            },
            other => out.push(other),
        }
    }
    Err("quotes that do not end")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        family::{Def, Family},
        page::{Form, render},
    };

    #[test]
    fn samples_are_read_with_their_labels_unescaped() {
        let page = "# HELP a b\n# TYPE a gauge\na 1\nb{x=\"1\",y=\"a \\\"q\\\" \\\\ \\n, }\"} 2.5 1700000000500\n";
        let all = parse(page).unwrap();
        assert_eq!((&*all.samples[0].name, all.samples[0].value, all.kind("a")), ("a", 1.0, "gauge"));
        let b = &all.samples[1];
        assert_eq!((b.label("x"), b.label("y"), b.label("z")), ("1", "a \"q\" \\ \n, }", ""));
        assert_eq!((b.at, all.kind("b")), (Some(1_700_000_000.5), "untyped"));
    }

    #[test]
    fn openmetrics_and_names_of_any_letters_are_read() {
        let all = parse(
            "# TYPE a counter\na_total 1 1700000000.5 # {trace=\"x\"} 0.5\n{\"ü.b\",l=\"v\"} +Inf\nc{} NaN\n# EOF\n",
        )
        .unwrap();
        assert_eq!((all.family("a_total"), all.samples[0].at), ("a", Some(1_700_000_000.5)));
        assert_eq!((&*all.samples[1].name, all.samples[1].label("l")), ("ü.b", "v"));
        assert!(all.samples[1].value.is_infinite() && all.samples[2].value.is_nan());
    }

    #[test]
    fn what_is_no_page_says_where() {
        for (page, line, word) in [
            ("<!doctype html>", 1, "no sample"),
            ("a 1\n{\"json\": 1}", 2, "label"),
            ("a", 1, "no value"),
            ("a x", 1, "no value"),
            ("a 1 2 3", 1, "more than"),
            ("a{b=\"c} 1", 1, "do not end"),
            ("a{b} 1", 1, "without a value"),
            ("9a 1", 1, "digit"),
            ("a 1 soon", 1, "no number"),
            ("a 1 1.5", 1, "fraction"),
            ("a{b=\"c\",b=\"d\"} 1", 1, "twice"),
            ("a{9b=\"c\"} 1", 1, "none"),
            ("# TYPE a gauge\n# TYPE a counter\n", 2, "second TYPE"),
            ("# TYPE a banana\n", 1, "nobody knows"),
        ] {
            let error = parse(page).unwrap_err();
            assert!(error.line == line && error.what.contains(word), "{page:?}: {error}");
        }
    }

    #[test]
    fn openmetrics_has_an_end() {
        assert!(parse_as("a 1\n", true).unwrap_err().what.contains("EOF"));
        assert!(parse_as("a 1\n# EOF\n", true).is_ok() && parse_as("a 1\n", false).is_ok());
    }

    static POWER: Def = Def::gauge("power_watts", &["container", "more"], "Power.");

    proptest! {
        #[test]
        fn any_text_has_an_end(page in any::<String>()) {
            let _ = parse(&page);
        }

        #[test]
        fn what_we_write_is_what_is_read(one in any::<String>(), other in any::<String>(), value in any::<f64>(), openmetrics: bool) {
            let page = render("t", [Family::new(&POWER).with(&[&one, &other], value)]).unwrap();
            let body = page.body(Form { openmetrics, gzip: false });
            let all = parse(std::str::from_utf8(&body).unwrap()).unwrap();
            let sample = &all.samples[0];
            prop_assert_eq!((sample.label("container"), sample.label("more")), (&*one, &*other));
            prop_assert!(sample.value.to_bits() == value.to_bits() || value.is_nan() && sample.value.is_nan());
        }
    }
}
